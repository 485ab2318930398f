"""The Remote Execution API, version 2."""
