"""Generated stubs of KServe's open inference protocol."""
