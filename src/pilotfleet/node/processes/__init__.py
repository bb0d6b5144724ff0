"""One daemon in several processes: who hosts which agent, and how clients get there.

The parent hosts nothing. It starts the processes, starts again what ends, listens at
the local socket, and hands each client over to the process of its agent.
"""
