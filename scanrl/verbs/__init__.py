"""What the command can do: one verb, one function; `scanrl.cli` lists them. One module per family of verbs."""
