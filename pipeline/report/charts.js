// Draws each chart of the page. Expressions are interpreted, not compiled, so that the page's policy can forbid eval.
const faint = { domainColor: "currentColor", gridColor: "currentColor", tickColor: "currentColor" };
const config = {
  background: null,
  font: "system-ui, sans-serif",
  axis: { ...faint, domainOpacity: 0.4, gridOpacity: 0.12, tickOpacity: 0.4, labelColor: "currentColor",
          titleColor: "currentColor", titleFontWeight: "normal", labelLimit: 150 },
  axisX: { labelOverlap: "greedy", labelSeparation: 6 },
  legend: { labelColor: "currentColor", titleColor: "currentColor", titleFontWeight: "normal", orient: "bottom" },
  mark: { color: "#3d85e0" },
  view: { stroke: null },
};
const options = {
  mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, config,
  tooltip: { disableDefaultStyle: true },
};
const charts = JSON.parse(document.getElementById("charts").textContent);
for (const [id, spec] of Object.entries(charts)) {
  const place = document.getElementById(id);
  vegaEmbed(place, spec, options).then(
    () => place.setAttribute("data-drawn", ""),
    (error) => { place.textContent = "This chart can't be drawn: " + error.message; },
  );
}
