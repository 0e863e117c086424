"""The `mass` commands: options, settings, progress and tables; the work is in the other packages."""
