/* Parameters with slots of fewer bits: tiles that stay in the nearest cache are decoded, stepped by a kernel in float32, and
 * encoded. Rules that have a loop over bfloat16 states need no tiles where nothing else has fewer bits. */
#include "internal.h"
#include "kernels/mix.h"

/* A multiple of FO_BLOCK; a tile of every slot fits the smallest caches of level 1. */
enum { TILE = 512 };

static uint32_t key_of(const fo_param *param, int slot, int64_t t)
{
    uint64_t h = mix(mix(0, param->stored.seed), (uint64_t)param->stored.number);
    return (uint32_t)(mix(mix(h, (uint64_t)slot), (uint64_t)t) >> 32);
}

static void *address(const fo_param *param, int slot, int64_t at)
{
    return (char *)param->data[slot] + fo_bytes(param->storage[slot], at);
}

static int is_low(const fo_param *param, int slot) { return param->storage[slot] >= FO_BFLOAT16; }

/* The slots of a parameter as stretches, up to their place. */
static void stretches_of(const fo_param *param, int kernel_slots, int64_t t, fo_stretch *stretch)
{
    for (int slot = 0; slot < kernel_slots; slot++)
        stretch[slot] = (fo_stretch){.square = slot >= SLOT_STATE && param->storage[slot] == FO_FLOAT8 &&
                                               (param->stored.squares >> (slot - SLOT_STATE) & 1),
                                     .key = is_low(param, slot) ? key_of(param, slot, t) : 0};
}

/* Whether only the states have fewer bits, and are bfloat16 that dithers round. */
static int is_narrow(const fo_param *param)
{
    return param->storage[SLOT_PARAM] == FO_FLOAT32 && param->storage[SLOT_GRAD] == FO_FLOAT32 &&
           param->storage[SLOT_STATE] == FO_BFLOAT16 && !param->stored.nearest;
}

void fo_step_stored(const fo_param *param, const fo_run *run, int64_t start, int64_t n)
{
    fo_narrow_kernel *narrow = is_narrow(param) ? fo_narrow_kernel_for(run->rule) : 0;
    if (narrow) {
        void *at[FO_KERNEL_SLOTS] = {0};
        uint32_t key[FO_STATES] = {0};
        for (int slot = 0; slot < param->slots; slot++)
            at[slot] = address(param, slot, start);
        for (int slot = SLOT_STATE; slot < param->slots; slot++)
            key[slot - SLOT_STATE] = key_of(param, slot, run->t);
        narrow(run, n, at, key, (uint32_t)(param->stored.first + start));
        return;
    }
    _Alignas(64) float room[FO_KERNEL_SLOTS][TILE];
    fo_stretch stretch[FO_KERNEL_SLOTS];
    const int slots = SLOT_STATE + fo_rule_states(run->rule), master = param->stored.master ? param->slots - 1 : 0;
    fo_kernel *kernel = fo_kernel_for(run->rule, FO_FLOAT32);
    stretches_of(param, slots, run->t, stretch);
    for (int64_t at = start; at < start + n; at += TILE) {
        void *data[FO_KERNEL_SLOTS] = {0};
        int64_t count = start + n - at < TILE ? start + n - at : TILE;
        for (int slot = 0, scales = slots; slot < slots; slot++) {
            int storage = param->storage[slot];
            fo_stretch *s = &stretch[slot];
            data[slot] = s->codes = address(param, slot, at);
            if (!is_low(param, slot))
                continue;
            s->n = count, s->first = (uint32_t)(param->stored.first + at);
            if (storage == FO_FLOAT8)
                s->scales = address(param, scales++, at);
            if (slot == SLOT_PARAM && master) {
                data[slot] = address(param, master, at);
                continue;
            }
            fo_decoder_for(storage)(s, room[slot]);
            data[slot] = room[slot];
        }
        kernel(run, count, data);
        for (int slot = 0; slot < slots; slot++)
            if (slot != SLOT_GRAD && is_low(param, slot))
                fo_encoder_for(param->storage[slot], param->stored.nearest)(&stretch[slot], data[slot]);
    }
}

void fo_squares_stored(const fo_param *param, double grad_scale, double k, int64_t start, int64_t n, double *sums)
{
    float room[FO_NORM_BLOCK];
    for (int64_t at = start; at < start + n; at += FO_NORM_BLOCK) {
        fo_stretch s = {.n = start + n - at < FO_NORM_BLOCK ? start + n - at : FO_NORM_BLOCK,
                        .codes = address(param, SLOT_GRAD, at)};
        fo_decoder_for(param->storage[SLOT_GRAD])(&s, room);
        fo_square_kernel_for(FO_FLOAT32)(grad_scale, k, s.n, room, sums++);
    }
}
