/* Parameters with slots of fewer bits: tiles that stay in the nearest cache are decoded, stepped by a kernel in float32, and
 * encoded. Rules that have loops of their own for these storages need no tiles. */
#include "internal.h"
#include "kernels/mix.h"

/* A multiple of FO_BLOCK; a tile of every slot fits the smallest caches of level 1. */
enum { TILE = 512 };

static uint32_t key_of(const fo_param *param, int slot, int64_t t)
{
    uint64_t h = mix(mix(0, param->stored.seed), (uint64_t)param->stored.number);
    return (uint32_t)(mix(mix(h, (uint64_t)slot), (uint64_t)t) >> 32);
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

/* Does what a loop of its own can do of `n` elements from `start` on, and returns how many. */
static int64_t step_narrow(const fo_param *param, const fo_run *run, int64_t start, int64_t n)
{
    const int states = fo_rule_states(run->rule), wide = param->storage[SLOT_PARAM], narrow = param->storage[SLOT_STATE];
    if (!states || param->storage[SLOT_GRAD] != wide || param->stored.nearest || param->stored.master)
        return 0;
    fo_narrow_kernel *kernel = fo_narrow_kernel_for(run->rule, wide, narrow);
    if (!kernel)
        return 0;
    if (narrow == FO_FLOAT8)
        n -= n % FO_BLOCK;
    void *at[FO_SLOTS] = {0};
    uint32_t key[FO_KERNEL_SLOTS] = {0};
    for (int slot = 0; slot < param->slots; slot++)
        at[slot] = fo_address(param, slot, start);
    for (int slot = 0; slot < SLOT_STATE + states; slot++)
        key[slot] = key_of(param, slot, run->t);
    kernel(run, n, at, key, (uint32_t)(param->stored.first + start));
    return n;
}

void fo_step_stored(const fo_param *param, const fo_run *run, int64_t start, int64_t n)
{
    const int64_t done = step_narrow(param, run, start, n);
    start += done, n -= done;
    if (!n)
        return;
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
            data[slot] = s->codes = fo_address(param, slot, at);
            if (!is_low(param, slot))
                continue;
            s->n = count, s->first = (uint32_t)(param->stored.first + at);
            if (storage == FO_FLOAT8)
                s->scales = fo_address(param, scales++, at);
            if (slot == SLOT_PARAM && master) {
                data[slot] = fo_address(param, master, at);
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
                        .codes = fo_address(param, SLOT_GRAD, at)};
        fo_decoder_for(param->storage[SLOT_GRAD])(&s, room);
        fo_square_kernel_for(FO_FLOAT32)(grad_scale, k, s.n, room, sums++);
    }
}
