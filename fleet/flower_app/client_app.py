"""The ClientApp: one short call to the gateway daemon beside the SuperNode per message."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fleet.coordinator.gateway_call import RECORD, handle

app = ClientApp()


def _answer(message: Message, context: Context) -> Message:
    payload = message.content.config_records[RECORD]["payload"]
    if not isinstance(payload, bytes):
        raise TypeError("the message's payload isn't bytes: the ServerApp is another app's")
    reply = handle(payload, context.node_config)
    return Message(RecordDict({RECORD: ConfigRecord({"payload": reply})}), reply_to=message)


@app.query("sync")
def sync(message: Message, context: Context) -> Message:
    """All that the coordinator wants of the gateway: starts, cancels, where rounds stand."""
    return _answer(message, context)


@app.train("sync")
def train(message: Message, context: Context) -> Message:
    """The same, for Flower's own loop, whose messages are of type train."""
    return _answer(message, context)
