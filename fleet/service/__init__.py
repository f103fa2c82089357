"""The operator's side: what an API and its client say, and the service behind it."""
