"""The console of deals: pages for people over the collection's database."""
