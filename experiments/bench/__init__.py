"""What the library's loop, losses and searches cost: `jaxdiff bench NAME`."""
