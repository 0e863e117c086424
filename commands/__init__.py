"""What each `mass` command does, between the parser in `flows` and the work in `pipeline` and `storage`."""
