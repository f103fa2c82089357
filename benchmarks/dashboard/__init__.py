"""The dashboard over a hundred thousand devices: pages, browsers, people who watch."""
