"""Generated modules of the contract between broker and fetchers."""
