/* The step of the hash that keys of dithers come from; written by csrc/generate.py from fastoptim/rules/codecs.py.
 * Do not edit. */

static inline uint64_t mix(uint64_t h, uint64_t x)
{
    const uint64_t a = (h + x) + 0x9e3779b97f4a7c15ull;
    const uint64_t b = (a ^ (a >> 0x1eull)) * 0xbf58476d1ce4e5b9ull;
    const uint64_t c = (b ^ (b >> 0x1bull)) * 0x94d049bb133111ebull;
    return c ^ (c >> 0x1full);
}
