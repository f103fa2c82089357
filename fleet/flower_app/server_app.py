"""The ServerApp: reads what to do from the run's configuration; the work is in the package."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Drive all campaigns of a service, one of them, or Flower's own loop: by `mode`."""
    from fleet.coordinator.server import run_server

    run_server(grid, dict(context.run_config))
