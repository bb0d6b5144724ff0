"""Run tasks through OpenClaw: many fleet identities on a few of its gateways."""
