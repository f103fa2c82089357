"""The ClientApp: one short call to the gateway daemon beside the SuperNode per message."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fleet.coordinator.gateway_call import handle

app = ClientApp()


def _answer(operation: str, message: Message, context: Context) -> Message:
    payload = message.content.config_records["tinyfleet"]["payload"]
    if not isinstance(payload, bytes):
        raise TypeError("the message's payload isn't bytes: the ServerApp is another app's")
    reply = handle(operation, payload, context.node_config)
    return Message(RecordDict({"tinyfleet": ConfigRecord({"payload": reply})}), reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Who the gateway is and which devices it has."""
    return _answer("hello", message, context)


@app.train("start")
def start(message: Message, context: Context) -> Message:
    """Begin a round, and wait a little for its end."""
    return _answer("start", message, context)


@app.train("collect")
def collect(message: Message, context: Context) -> Message:
    """Where a round stands; its sums once it is closed."""
    return _answer("collect", message, context)


@app.train("cancel")
def cancel(message: Message, context: Context) -> Message:
    """End a round without using it."""
    return _answer("cancel", message, context)
