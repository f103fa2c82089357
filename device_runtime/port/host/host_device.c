/* A device whose serial line, flash, clock and power are in the caller's hands. */
#include "host_device.h"

#include <stddef.h>
#include <string.h>

#define RING_BYTES 4096u /* wire.md, Session: the window fits */
#define SAMPLE_ORDER 512u

struct tf_host_device {
    const tf_host_setup *setup;
    tf_client client;
    tf_client_config config;
    tf_port port;
    tf_stream stream;
    tf_flash flash;
    uint32_t milliseconds;
    uint32_t random;
    uint32_t flash_operations;
    uint32_t operations_to_cut;           /* 0: no cut is due */
    uint32_t words, erases, bytes_erased; /* flash operations that were begun in this poll */
    uint32_t ring_start, ring_count;
    uint32_t transmit_count;
    uint16_t sample_order[SAMPLE_ORDER];
    uint8_t ring[RING_BYTES];
    uint8_t transmit[TF_HOST_TRANSMIT_BYTES];
    uint8_t mqtt_receive[TF_MQTT_MINIMUM_RECEIVE_BYTES];
    uint8_t mqtt_transmit[TF_MQTT_MINIMUM_TRANSMIT_BYTES];
    uint8_t battery;
    bool dials;
    bool carrier;
    bool stale_carrier; /* of the connection before; it has to go before a new one counts */
    bool has_power;
    bool is_ready; /* the client was set up */
};

static uint32_t draw(tf_host_device *device) {
    device->random++;
    return tf_random(device->setup->seed, 0x686F7374u, device->random);
}

/* --- stream --------------------------------------------------------------------------------- */

static void stream_open(void *context) {
    tf_host_device *device = context;
    if (device->dials && (device->carrier || device->stale_carrier)) {
        return;
    }
    device->ring_count = 0;
    device->transmit_count = 0; /* what the old connection left */
    device->dials = true;
}

static void stream_close(void *context) {
    tf_host_device *device = context;
    device->stale_carrier = device->carrier;
    device->dials = false;
    device->ring_count = 0;
}

static bool stream_is_open(void *context) {
    const tf_host_device *device = context;
    return device->dials && device->carrier && !device->stale_carrier;
}

static size_t stream_read(void *context, uint8_t *bytes, size_t capacity) {
    tf_host_device *device = context;
    size_t count = 0;
    while (count < capacity && device->ring_count > 0u) {
        bytes[count++] = device->ring[device->ring_start];
        device->ring_start = (device->ring_start + 1u) % RING_BYTES;
        device->ring_count--;
    }
    return count;
}

static size_t stream_write(void *context, const uint8_t *bytes, size_t length) {
    tf_host_device *device = context;
    if (!stream_is_open(device)) {
        return 0;
    }
    const size_t room = TF_HOST_TRANSMIT_BYTES - device->transmit_count;
    const size_t count = length < room ? length : room;
    memcpy(device->transmit + device->transmit_count, bytes, count);
    device->transmit_count += (uint32_t)count;
    return count;
}

static uint32_t stream_milliseconds(void *context) {
    const tf_host_device *device = context;
    return device->milliseconds;
}

/* --- flash ---------------------------------------------------------------------------------- */

/* Counts an operation; true when the power goes during it. */
static bool is_cut(tf_host_device *device) {
    device->flash_operations++;
    if (device->operations_to_cut > 0u && --device->operations_to_cut == 0u) {
        device->has_power = false;
    }
    return !device->has_power;
}

/* Where `bytes` bytes at `address` lie in a flash; NULL where they are outside of both. */
static uint8_t *place_of(const tf_host_device *device, uint32_t address, uint32_t bytes) {
    for (int i = 0; i < 2; i++) {
        const tf_host_flash *flash = &device->setup->flashes[i];
        const uint32_t offset = address - flash->address;
        if (address >= flash->address && offset <= flash->bytes && bytes <= flash->bytes - offset) {
            return flash->content + offset;
        }
    }
    return NULL;
}

static tf_status erase_sector(void *context, uint16_t sector) {
    tf_host_device *device = context;
    const tf_host_flash *flash = device->setup->flashes;
    uint32_t index = sector;
    if (index >= flash->sector_count) {
        index -= flash->sector_count;
        flash++;
    }
    if (!device->has_power || index >= flash->sector_count) {
        return TF_FLASH_FAILED;
    }
    uint32_t start = 0;
    for (uint32_t i = 0; i < index; i++) {
        start += flash->sector_bytes[i];
    }
    uint8_t *bytes = flash->content + start;
    const uint32_t length = flash->sector_bytes[index];
    flash->erases[index]++;
    device->erases++;
    device->bytes_erased += length;
    if (is_cut(device)) {
        for (uint32_t i = 0; i < length; i++) {
            bytes[i] |= (uint8_t)draw(device);
        }
        return TF_FLASH_FAILED;
    }
    for (uint32_t i = 0; i < length; i++) {
        if (bytes[i] != 0xFFu) { /* memory that nobody writes costs nothing */
            bytes[i] = 0xFF;
        }
    }
    return TF_OK;
}

static tf_status program_word(void *context, uint32_t address, uint32_t word) {
    tf_host_device *device = context;
    uint8_t *bytes = place_of(device, address, 4u);
    if (!device->has_power || address % 4u != 0u || bytes == NULL) {
        return TF_FLASH_FAILED;
    }
    device->words++;
    const bool cut = is_cut(device);
    const uint32_t programmed = cut ? word | draw(device) : word;
    bool is_equal = true;
    for (uint32_t i = 0; i < 4u; i++) {
        bytes[i] &= (uint8_t)(programmed >> (8u * i));
        is_equal = is_equal && bytes[i] == (uint8_t)(word >> (8u * i));
    }
    return !cut && is_equal ? TF_OK : TF_FLASH_FAILED;
}

static const uint8_t *map(void *context, uint32_t address, uint32_t bytes) {
    return place_of(context, address, bytes);
}

/* --- port ----------------------------------------------------------------------------------- */

static uint32_t entropy(void *context) {
    return draw(context);
}

static uint8_t battery(void *context) {
    const tf_host_device *device = context;
    return device->battery;
}

uint32_t tf_host_device_bytes(void) {
    return (uint32_t)sizeof(tf_host_device);
}

tf_status tf_host_device_start(tf_host_device *device, const tf_host_setup *setup,
                               uint32_t milliseconds) {
    const uint32_t operations = device->flash_operations;
    const uint32_t operations_to_cut = device->operations_to_cut;
    memset(device, 0, sizeof *device);
    device->flash_operations = operations;
    device->operations_to_cut = operations_to_cut;
    device->setup = setup;
    device->milliseconds = milliseconds;
    device->random = milliseconds << 12; /* other bits after each reset */
    device->battery = 100;
    device->has_power = true;
    device->stream = (tf_stream){stream_open,  stream_close,        stream_is_open, stream_read,
                                 stream_write, stream_milliseconds, device};
    device->flash = (tf_flash){device, erase_sector, program_word, map};
    device->port = (tf_port){
        .stream = &device->stream,
        .flash = &device->flash,
        .entropy = entropy,
        .secret = setup->secret,
        .battery = battery,
        .context = device,
    };
    device->config = (tf_client_config){
        .model = &tf_the_model,
        .board = setup->board,
        .port = &device->port,
        .regions = setup->regions,
        .pool = setup->pool,
        .pool_bytes = setup->pool_bytes,
        .receive = device->mqtt_receive,
        .transmit = device->mqtt_transmit,
        .receive_bytes = sizeof device->mqtt_receive,
        .transmit_bytes = sizeof device->mqtt_transmit,
        .sample_order = device->sample_order,
        .sample_order_size = SAMPLE_ORDER,
        .reset_cause = setup->reset_cause,
        .fault_code = setup->fault_code,
        .fault_pc = setup->fault_pc,
    };
    const tf_status status = tf_client_init(&device->client, &device->config);
    device->is_ready = status == TF_OK;
    return status;
}

bool tf_host_device_run(tf_host_device *device, uint32_t milliseconds, uint32_t steps) {
    device->milliseconds = milliseconds;
    bool is_busy = device->is_ready && device->has_power;
    while (is_busy && steps-- > 0u) {
        is_busy = tf_client_poll(&device->client) && device->has_power;
    }
    return is_busy;
}

/* Adds what the last poll did to `done`; returns how long it took. `before` is how many samples had
 * been scored and trained on until then: a poll does one of either at most. */
static uint64_t account(tf_host_device *device, const tf_host_costs *costs, tf_host_done *done,
                        uint32_t scored_before, uint32_t trained_before) {
    const tf_client *client = &device->client;
    uint64_t took = costs->poll;
    if (client->score.samples == scored_before + 1u) {
        const uint64_t pass = costs->forward[client->plan - tf_the_model.plans];
        done->forward_passes++;
        done->forward_nanoseconds += pass;
        took += pass;
    }
    if (client->train_steps == trained_before + 1u) {
        const uint64_t step = costs->step[client->plan - tf_the_model.plans];
        done->train_steps++;
        done->train_nanoseconds += step;
        took += step;
    }
    done->flash_words += device->words;
    done->flash_erases += device->erases;
    done->flash_bytes_erased += device->bytes_erased;
    took += device->words * costs->flash_word + device->erases * costs->flash_erase +
            device->bytes_erased * costs->flash_erase_byte;
    device->words = device->erases = device->bytes_erased = 0;
    return took;
}

uint32_t tf_host_device_next_run_ms(const tf_host_device *device) {
    return device->is_ready && device->has_power ? tf_client_next_poll_ms(&device->client)
                                                 : UINT32_MAX;
}

uint32_t tf_host_device_receive(tf_host_device *device, const uint8_t *bytes, uint32_t length) {
    if (!stream_is_open(device)) {
        return length; /* nobody listens */
    }
    uint32_t count = 0;
    while (count < length && device->ring_count < RING_BYTES) {
        device->ring[(device->ring_start + device->ring_count) % RING_BYTES] = bytes[count++];
        device->ring_count++;
    }
    return count;
}

uint32_t tf_host_device_take(tf_host_device *device, uint8_t *bytes, uint32_t capacity) {
    const uint32_t count = device->transmit_count < capacity ? device->transmit_count : capacity;
    memcpy(bytes, device->transmit, count);
    device->transmit_count -= count;
    memmove(device->transmit, device->transmit + count, device->transmit_count);
    return count;
}

bool tf_host_device_dials(const tf_host_device *device) {
    return device->dials && device->has_power && !device->stale_carrier;
}

void tf_host_device_work(tf_host_device *device, const tf_host_costs *costs, tf_host_done *done,
                         uint64_t now, uint64_t until, tf_host_standing *standing) {
    bool is_busy = device->is_ready && device->has_power;
    while (is_busy && now < until && device->transmit_count == 0u) {
        const uint32_t scored = device->client.score.samples;
        const uint32_t trained = device->client.train_steps;
        device->milliseconds = (uint32_t)(now / 1000000u);
        is_busy = tf_client_poll(&device->client) && device->has_power;
        now += account(device, costs, done, scored, trained);
    }
    standing->now = now;
    standing->is_busy = is_busy;
    standing->taken = tf_host_device_take(device, standing->bytes, sizeof standing->bytes);
    standing->next_run_ms = tf_host_device_next_run_ms(device);
    standing->dials = tf_host_device_dials(device);
    standing->has_power = device->has_power;
}

void tf_host_device_set_carrier(tf_host_device *device, bool carrier) {
    device->carrier = carrier;
    device->stale_carrier = device->stale_carrier && carrier;
}

void tf_host_device_set_battery(tf_host_device *device, uint8_t battery) {
    device->battery = battery;
}

tf_status tf_host_device_record(tf_host_device *device, uint16_t label, const uint8_t *payload,
                                uint32_t payload_bytes) {
    if (!device->is_ready || !device->has_power) {
        return TF_FLASH_FAILED;
    }
    return tf_sample_log_append(tf_client_sample_log(&device->client), label, payload,
                                payload_bytes);
}

void tf_host_device_cut_power(tf_host_device *device, uint32_t flash_operation) {
    device->operations_to_cut = flash_operation;
}

bool tf_host_device_has_power(const tf_host_device *device) {
    return device->has_power;
}

uint32_t tf_host_device_flash_operations(const tf_host_device *device) {
    return device->flash_operations;
}

int32_t tf_host_device_state(const tf_host_device *device) {
    return device->is_ready && device->has_power ? (int32_t)tf_client_state(&device->client)
                                                 : (int32_t)TF_DEVICE_OFFLINE;
}

void tf_host_device_current_weights(const tf_host_device *device, uint8_t *sha256) {
    memcpy(sha256, tf_weights_current_sha256(&device->client.weights), TF_DIGEST_BYTES);
}

void tf_host_device_candidate_weights(const tf_host_device *device, uint8_t *sha256) {
    const uint8_t *candidate = tf_weights_candidate_sha256(&device->client.weights);
    memset(sha256, 0, TF_DIGEST_BYTES);
    if (candidate != NULL) {
        memcpy(sha256, candidate, TF_DIGEST_BYTES);
    }
}

int32_t tf_host_device_infer(const tf_host_device *device, const int8_t *sample, void *pool,
                             uint32_t pool_bytes) {
    tf_engine engine;
    if (!device->is_ready || !device->has_power ||
        tf_client_load_model(&device->client, &engine, pool, pool_bytes) != TF_OK) {
        return -1;
    }
    return tf_engine_predict(&engine, sample);
}

const tf_model *tf_host_model(void) {
    return &tf_the_model;
}
