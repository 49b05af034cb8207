"""What the data is: tables, masks, categories, documents, a job. The ground floor."""
