/* Fields of MQTT packets (MQTT 5, sections 1.5 and 2.2.2), bounds and form checked. */
#include "mqtt_reader.h"

const uint8_t *tf_mqtt_take_bytes(tf_mqtt_reader *reader, size_t length) {
    const uint8_t *bytes = reader->next;
    if (length > reader->left) {
        reader->failed = true;
        reader->left = 0;
        return NULL;
    }
    reader->next += length;
    reader->left -= length;
    return bytes;
}

static uint32_t take_big_endian(tf_mqtt_reader *reader, size_t length) {
    const uint8_t *bytes = tf_mqtt_take_bytes(reader, length);
    uint32_t value = 0;
    for (size_t i = 0; bytes != NULL && i < length; i++) {
        value = value << 8 | bytes[i];
    }
    return value;
}

uint8_t tf_mqtt_take_u8(tf_mqtt_reader *reader) {
    return (uint8_t)take_big_endian(reader, 1);
}

uint16_t tf_mqtt_take_u16(tf_mqtt_reader *reader) {
    return (uint16_t)take_big_endian(reader, 2);
}

uint32_t tf_mqtt_take_u32(tf_mqtt_reader *reader) {
    return take_big_endian(reader, 4);
}

uint32_t tf_mqtt_take_variable(tf_mqtt_reader *reader) {
    uint32_t value = 0;
    for (unsigned shift = 0; shift < 28; shift += 7) {
        uint8_t byte = tf_mqtt_take_u8(reader);
        value |= (uint32_t)(byte & 0x7Fu) << shift;
        if (byte < 0x80) {
            if (byte == 0 && shift > 0) {
                break; /* longer than needed */
            }
            return value;
        }
    }
    reader->failed = true;
    return 0;
}

const uint8_t *tf_mqtt_take_binary(tf_mqtt_reader *reader, uint16_t *length) {
    *length = tf_mqtt_take_u16(reader);
    const uint8_t *bytes = tf_mqtt_take_bytes(reader, *length);
    if (bytes == NULL) {
        *length = 0;
    }
    return bytes;
}

/* RFC 3629, section 4, without U+0000 (MQTT-1.5.4-2). */
static bool well_formed(const uint8_t *text, size_t length) {
    size_t i = 0;
    while (i < length) {
        uint8_t first = text[i++];
        unsigned more;
        uint8_t low = 0x80, high = 0xBF; /* bounds of the second byte */
        if (first == 0) {
            return false;
        }
        if (first < 0x80) {
            continue;
        }
        if (first >= 0xC2 && first <= 0xDF) {
            more = 1;
        } else if ((first & 0xF0u) == 0xE0u) {
            more = 2;
            low = first == 0xE0 ? 0xA0 : 0x80;
            high = first == 0xED ? 0x9F : 0xBF; /* no surrogates */
        } else if (first >= 0xF0 && first <= 0xF4) {
            more = 3;
            low = first == 0xF0 ? 0x90 : 0x80;
            high = first == 0xF4 ? 0x8F : 0xBF; /* up to U+10FFFF */
        } else {
            return false;
        }
        if (length - i < more || text[i] < low || text[i] > high) {
            return false;
        }
        for (unsigned k = 1; k < more; k++) {
            if ((text[i + k] & 0xC0u) != 0x80u) {
                return false;
            }
        }
        i += more;
    }
    return true;
}

const char *tf_mqtt_take_text(tf_mqtt_reader *reader, uint16_t *length) {
    const uint8_t *text = tf_mqtt_take_binary(reader, length);
    if (text != NULL && !well_formed(text, *length)) {
        reader->failed = true;
    }
    return (const char *)text;
}

enum {
    ONE_BYTE,
    TWO_BYTES,
    FOUR_BYTES,
    TEXT,
    BINARY,
    TEXT_PAIR
};

typedef struct {
    uint8_t identifier;
    uint8_t type;
    uint8_t packets; /* TF_IN_ bits */
    bool repeats;    /* may be given more than once */
} property_rule;

enum {
    PAYLOAD_FORMAT = 1,
    MESSAGE_EXPIRY = 2,
    RESPONSE_TOPIC = 8,
    CORRELATION_DATA = 9,
    SERVER_KEEP_ALIVE = 19,
    RECEIVE_MAXIMUM = 33,
    MAXIMUM_QOS = 36,
    RETAIN_AVAILABLE = 37,
    MAXIMUM_PACKET_SIZE = 39
};

/* MQTT 5, table 2-4, for what a server may send to this client. A topic alias (35) isn't among
 * them, because CONNECT allows none; nor a subscription identifier (11), because no
 * SUBSCRIBE gives one; nor authentication data (21, 22). */
static const property_rule rules[] = {
    {PAYLOAD_FORMAT, ONE_BYTE, TF_IN_PUBLISH, false},
    {MESSAGE_EXPIRY, FOUR_BYTES, TF_IN_PUBLISH, false},
    {3, TEXT, TF_IN_PUBLISH, false}, /* content type */
    {RESPONSE_TOPIC, TEXT, TF_IN_PUBLISH, false},
    {CORRELATION_DATA, BINARY, TF_IN_PUBLISH, false},
    {17, FOUR_BYTES, TF_IN_CONNACK, false}, /* session expiry interval */
    {18, TEXT, TF_IN_CONNACK, false},       /* assigned client identifier */
    {SERVER_KEEP_ALIVE, TWO_BYTES, TF_IN_CONNACK, false},
    {26, TEXT, TF_IN_CONNACK, false},                                /* response information */
    {28, TEXT, TF_IN_CONNACK | TF_IN_DISCONNECT, false},             /* server reference */
    {31, TEXT, TF_IN_CONNACK | TF_IN_ACK | TF_IN_DISCONNECT, false}, /* reason string */
    {RECEIVE_MAXIMUM, TWO_BYTES, TF_IN_CONNACK, false},
    {34, TWO_BYTES, TF_IN_CONNACK, false}, /* topic alias maximum */
    {MAXIMUM_QOS, ONE_BYTE, TF_IN_CONNACK, false},
    {RETAIN_AVAILABLE, ONE_BYTE, TF_IN_CONNACK, false},
    {38, TEXT_PAIR, TF_IN_CONNACK | TF_IN_PUBLISH | TF_IN_ACK | TF_IN_DISCONNECT, true},
    {MAXIMUM_PACKET_SIZE, FOUR_BYTES, TF_IN_CONNACK, false},
    {40, ONE_BYTE, TF_IN_CONNACK, false}, /* wildcard subscriptions */
    {41, ONE_BYTE, TF_IN_CONNACK, false}, /* subscription identifiers */
    {42, ONE_BYTE, TF_IN_CONNACK, false}, /* shared subscriptions */
};

#define RULE_COUNT (sizeof rules / sizeof rules[0])

/* Keeps a number the client wants; false where it is out of its range. */
static bool keep_number(tf_mqtt_properties *properties, const property_rule *rule, uint32_t value) {
    if (rule->type == ONE_BYTE && value > 1) {
        return false; /* true of every one-byte property that may come */
    }
    switch (rule->identifier) {
    case MESSAGE_EXPIRY:
        properties->expiry_seconds = value;
        return true;
    case SERVER_KEEP_ALIVE:
        properties->keep_alive_seconds = (uint16_t)value;
        properties->has_keep_alive = true;
        return true;
    case RECEIVE_MAXIMUM:
        return value != 0; /* at least one, and no more than one is ever under way */
    case MAXIMUM_QOS:
        properties->qos_limit = (uint8_t)value;
        return true;
    case RETAIN_AVAILABLE:
        properties->retain_available = value != 0;
        return true;
    case MAXIMUM_PACKET_SIZE:
        properties->packet_limit = value;
        return value != 0;
    default:
        return true;
    }
}

static void take_property(tf_mqtt_reader *reader, const property_rule *rule,
                          tf_mqtt_properties *properties) {
    uint16_t length;
    const char *text;
    const uint8_t *bytes;
    uint32_t number = 0;
    switch (rule->type) {
    case TEXT:
        text = tf_mqtt_take_text(reader, &length);
        if (rule->identifier == RESPONSE_TOPIC) {
            properties->response_topic = text;
            properties->response_topic_bytes = length;
        }
        return;
    case BINARY:
        bytes = tf_mqtt_take_binary(reader, &length);
        properties->correlation_data = bytes;
        properties->correlation_data_bytes = length;
        return;
    case TEXT_PAIR:
        tf_mqtt_take_text(reader, &length);
        tf_mqtt_take_text(reader, &length);
        return;
    case ONE_BYTE:
        number = tf_mqtt_take_u8(reader);
        break;
    case TWO_BYTES:
        number = tf_mqtt_take_u16(reader);
        break;
    default:
        number = tf_mqtt_take_u32(reader);
        break;
    }
    if (!reader->failed && !keep_number(properties, rule, number)) {
        reader->failed = true;
    }
}

void tf_mqtt_take_properties(tf_mqtt_reader *reader, unsigned packet,
                             tf_mqtt_properties *properties) {
    *properties = (tf_mqtt_properties){
        .expiry_seconds = UINT32_MAX,
        .packet_limit = UINT32_MAX,
        .qos_limit = 2,
        .retain_available = true,
    };
    uint32_t length = tf_mqtt_take_variable(reader);
    tf_mqtt_reader inner = {NULL, 0, false};
    inner.next = tf_mqtt_take_bytes(reader, length);
    inner.left = reader->failed ? 0 : length;
    uint32_t seen = 0; /* bit i: rules[i] */
    while (inner.left > 0 && !inner.failed) {
        uint8_t identifier = tf_mqtt_take_u8(&inner);
        unsigned i = 0;
        while (i < RULE_COUNT && rules[i].identifier != identifier) {
            i++;
        }
        if (i == RULE_COUNT || !(rules[i].packets & packet) ||
            ((seen >> i & 1u) && !rules[i].repeats)) {
            reader->failed = true;
            return;
        }
        seen |= (uint32_t)1 << i;
        take_property(&inner, &rules[i], properties);
    }
    reader->failed |= inner.failed;
}
