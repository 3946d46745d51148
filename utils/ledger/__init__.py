"""The claims of all studies, the reference results, and the page that sets both beside the reader's runs."""
