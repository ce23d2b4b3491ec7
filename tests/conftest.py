"""Its place puts this directory on the import path: tests in every folder import `builders`."""
