"""The Remote Execution API."""
