"""The request models of the HTTP API.

They import only the domain, so that the server and the client can share them.
"""
