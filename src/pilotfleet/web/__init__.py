"""What every web page of this package has in common.

A page is a Starlette application inside three rings, put around it by
``guard.guard``: security headers and the Host check (``security``), limits on the
request (``limits``), the login token (``access``). ``server.HttpServer`` runs it in
the program's own loop, ``assets.Assets`` serves its files, ``sse.event_stream`` keeps
it live. ``static/`` holds the style and the modules that all pages share.
"""
