"""The command line: environment check, fetching, the Papermill runner, reference results, the ledger."""
