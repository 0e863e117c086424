"""Array in, array out: ingest, proposals, quality and pictures. Nothing heavy is imported here."""
