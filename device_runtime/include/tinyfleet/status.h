/* Result of every function of the runtime that can fail. */
#ifndef TINYFLEET_STATUS_H
#define TINYFLEET_STATUS_H

typedef enum {
    TF_OK = 0,
    TF_AGAIN,        /* nothing wrong, nothing done yet: call again later */
    TF_NO_MEMORY,    /* the pool or buffer that the caller gave is too small */
    TF_NOT_FOUND,    /* no such plan, record or version */
    TF_BAD_INPUT,    /* bytes or arguments that break their specification */
    TF_FLASH_FAILED, /* the flash refused to erase or to program */
    TF_LINK_LOST     /* the byte stream or the session ended */
} tf_status;

#endif
