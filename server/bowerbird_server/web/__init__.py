"""The web: dashboard, review page and JSON API. `app.create_app` builds it; who may come in is in `auth.py`."""
