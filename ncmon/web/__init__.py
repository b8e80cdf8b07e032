"""The terminal UI in a browser, by textual-serve: the only aiohttp of ncmon.

    access    who may come in: addresses, hosts, origins, the token
    server    the page and its websocket; a process of its own
    session   one tab, seen from the server: the process behind it, begun, fed and ended
    tab       that process: the terminal UI, drawing into a pipe
    page/     what the browser loads beside textual-serve's own script; nothing comes from elsewhere

A page can do what somebody at the terminal can do: look, acknowledge, export. That is little, and still nobody else's
business: it is bound to this machine, asks for a token, and listens to no page but its own.
"""
