"""Models from elsewhere: a source becomes a list of files, one downloader fetches them, one rename shows them."""
