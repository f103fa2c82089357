/* Milliseconds of the port's clock; right over its wrap. */
#ifndef TINYFLEET_CLIENT_CLOCK_H
#define TINYFLEET_CLIENT_CLOCK_H

#include "tinyfleet/client.h"

static inline uint32_t tf_client_now(const tf_client *client) {
    const tf_stream *stream = client->config->port->stream;
    return stream->milliseconds(stream->context);
}

static inline uint32_t tf_client_elapsed(const tf_client *client, uint32_t since) {
    return tf_client_now(client) - since;
}

#endif
