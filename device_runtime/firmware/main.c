/* Firmware of a device: the client on a board. */
#include "tinyfleet/client.h"

#include "../port/board.h"

/* Names: the size report sums tf_link_* and tf_sample_*. */
static uint8_t tf_link_receive[TF_MQTT_MINIMUM_RECEIVE_BYTES];
static uint8_t tf_link_transmit[TF_MQTT_MINIMUM_TRANSMIT_BYTES];
static uint16_t tf_sample_order[512];

static tf_client_config config;
static tf_client client;

#define RETRY_MS 10000u

/* Without identity, or with a flash that doesn't answer, there is nothing to do but wait for
 * whoever provisions the board, and look again. */
static void wait_and_reset(const tf_port *port) {
    const uint32_t since = port->stream->milliseconds(port->stream->context);
    while (port->stream->milliseconds(port->stream->context) - since < RETRY_MS) {
        tf_board_idle(RETRY_MS);
    }
    tf_board_reset();
}

int main(void) {
    const tf_port *port = tf_board_start();
    const tf_board_layout layout = tf_board_get_layout();
    const tf_board_reset_report report = tf_board_get_reset_report();
    config = (tf_client_config){
        .model = &tf_the_model,
        .board = TF_BOARD_NAME,
        .port = port,
        .regions = layout.regions,
        .pool = layout.pool,
        .pool_bytes = layout.pool_bytes,
        .receive = tf_link_receive,
        .transmit = tf_link_transmit,
        .receive_bytes = sizeof tf_link_receive,
        .transmit_bytes = sizeof tf_link_transmit,
        .sample_order = tf_sample_order,
        .sample_order_size = sizeof tf_sample_order / sizeof tf_sample_order[0],
        .reset_cause = report.reset_cause,
        .fault_code = report.fault_code,
        .fault_pc = report.fault_pc,
    };
    if (tf_client_init(&client, &config) != TF_OK) {
        wait_and_reset(port);
    }
    for (;;) {
        const bool has_more = tf_client_poll(&client);
        tf_board_show_progress();
        if (!has_more) {
            tf_board_idle(tf_client_next_poll_ms(&client));
        }
    }
}
