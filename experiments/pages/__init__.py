"""What writes the generated pages and files: `jaxdiff pages NAME`."""
