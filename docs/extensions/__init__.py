"""Parts of the build of the documentation."""
