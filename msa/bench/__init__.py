"""Routing and the engine measured on the reader's own machine, against the best that could be used instead.

``peers`` holds every way to route, ``measure`` what is measured and how, ``engine`` the whole engine, ``gpu`` what only
a GPU can show; ``python -m msa.bench`` runs them.
"""
