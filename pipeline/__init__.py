"""From scans to arrays: ingest, mask proposals, quality scores and pictures. Imports nothing heavy."""
