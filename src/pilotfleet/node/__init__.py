"""The daemon: virtual agents, their tunnels, streams and local socket."""
