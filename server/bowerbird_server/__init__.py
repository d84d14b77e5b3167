"""The server: ingest, labelling, data set versions, training, the gate, rollouts and the web pages."""
