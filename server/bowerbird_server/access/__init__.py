"""Who may come in and what is written down of it: roles, passwords, log-ins, private files, the event log as a chain.

The rows are the catalogue's (`catalogue/accounts.py`, `catalogue/sessions.py`, `catalogue/audit.py`), the pages `web/`'s.
"""
