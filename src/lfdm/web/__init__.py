"""The web app: the pipeline in a browser, for a laptop or a lab's network. Needs the extra `[web]`."""
