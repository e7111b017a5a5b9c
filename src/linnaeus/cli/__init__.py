"""The command line: one command per verb, no logic. Heavy parts are imported by the command that needs them."""
