"""What an error, a log line or a table may show of a URL."""

from __future__ import annotations

import json
import logging
import pickle

import pytest

from prelabel.pipeline.logs import JsonFormatter, TextFormatter
from prelabel.schemas.errors import PrelabelError, SourceError, UserError, one_line, printable, redacted
from prelabel.schemas.job import Job

SECRETS = {
    "https://me:S3CRET@host/x.jpg": "https://***@host/x.jpg",
    "https://S3CRET@host/x.jpg": "https://***@host/x.jpg",
    "simplecache::sftp://me:S3CRET@host/x": "simplecache::sftp://***@host/x",
    "https://h/x?w=9&X-Amz-Signature=S3CRET&X-Amz-Date=S3CRET": "https://h/x?w=9&X-Amz-Signature=***&X-Amz-Date=***",
    "https://h/x?X%2DAmz-Signature=S3CRET": "https://h/x?X%2DAmz-Signature=***",
    "https://h/x?GoogleAccessId=S3CRET&Expires=5&Signature=S3CRET": (
        "https://h/x?GoogleAccessId=***&Expires=5&Signature=***"
    ),
    "https://h/x?sv=2024&sp=r&sig=S3CRET%3D#access_token=S3CRET": "https://h/x?sv=2024&sp=r&sig=***#access_token=***",
    "https://h/x?KEY=S3CRET&api_key=S3CRET&password=S3CRET": "https://h/x?KEY=***&api_key=***&password=***",
    "https://h/x?a=1;sig=S3CRET;b=2": "https://h/x?a=1;sig=***;b=2",
    "https://h/x?url=https://g/y?sig=S3CRET&b=2": "https://h/x?url=https://g/y?sig=***&b=2",
    "AccountName=a;AccountKey=S3CRET==;EndpointSuffix=b": "AccountName=a;AccountKey=***;EndpointSuffix=b",
    "https://me:S3CRÈT@host/x?token=S3CRÈT": "https://***@host/x?token=***",
    "403, url='https://h/x?token=S3CRET' and https://u:S3CRET@h": "403, url='https://h/x?token=***' and https://***@h",
    "https://h/x?sig=S3.CRET: denied (https://h/x?sig=S3CRET).": "https://h/x?sig=***: denied (https://h/x?sig=***).",
    "no answer with url: /x?sig=S3CRET (again)": "no answer with url: /x?sig=*** (again)",
}
HARMLESS = [
    "s3://bucket/photos/key.jpg", "abfs://container@account.dfs.core.windows.net/a", "https://host/a@b/c?w=3&h=4",
    "/home/me/a=b/x@y.jpg", "write to me@host: token", "https://h/x?monkey=1&design=2",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_hidden_wherever_a_text_is_shown(text: str) -> None:
    shown = SECRETS[text]
    assert redacted(text) == redacted(shown) == shown
    assert one_line(Exception(text)) == printable(text) == str(UserError(text)) == shown
    assert str(pickle.loads(pickle.dumps(SourceError(text)))) == shown
    entry = logging.LogRecord("prelabel", logging.INFO, "", 0, 'it says "%s"', (text,), None)
    assert TextFormatter("%(message)s").format(entry) == f'it says "{shown}"'
    assert json.loads(JsonFormatter().format(entry))["message"] == f'it says "{shown}"'


@pytest.mark.parametrize("text", HARMLESS)
def test_the_rest_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("option", ["sources", "output", "weights", "categories", "address"])
def test_a_job_holds_no_secret(option: str) -> None:
    given = {"sources": "s3://b/x", "output": "o", "model": "f:n"} | {option: "https://me:S3CRET@host/x"}
    with pytest.raises(PrelabelError, match=f"--{option}: https://.*@host/x holds a secret, .*environment") as caught:
        Job.of(given.pop("sources"), **given)
    assert "S3CRET" not in str(caught.value)
