/* Decoding and encoding of numbers that are stored in fewer bits; written by csrc/generate.py from
 * fastoptim/rules/codecs.py. Do not edit. */

CODEC uint32_t dither(uint32_t key, uint32_t i)
{
    return key + (i * 0x9e3779b1u);
}

CODEC float bfloat16_decode(uint32_t c)
{
    return number((c << 0x10u));
}

CODEC uint32_t bfloat16_stochastic(float x, uint32_t r)
{
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const uint32_t cut = (a + (r >> 0x10u)) >> 0x10u;
    const uint32_t kept = ((cut > 0x7f7fu) & (a < 0x7f800000u)) ? 0x7f7fu : cut;
    return (a > 0x7f800000u) ? 0x7fc0u : (kept | ((u >> 0x10u) & 0x8000u));
}

CODEC uint32_t bfloat16_nearest(float x, uint32_t r)
{
    (void)r;
    const uint32_t u = bits(x);
    const uint32_t cut = ((u + 0x7fffu) + ((u >> 0x10u) & 0x1u)) >> 0x10u;
    return ((u & 0x7fffffffu) > 0x7f800000u) ? 0x7fc0u : cut;
}

CODEC float float16_decode(uint32_t c)
{
    const uint32_t m = c & 0x7fffu;
    const float small = number(((m << 0xdu) + 0x38800000u)) - 0x1.0000000000000p-14f;
    const float normal = number(((m << 0xdu) + 0x38000000u));
    const float special = number(((m << 0xdu) | 0x7f800000u));
    const float size = (m < 0x400u) ? small : ((m < 0x7c00u) ? normal : special);
    return number((bits(size) | ((c & 0x8000u) << 0x10u)));
}

CODEC uint32_t float16_stochastic(float x, uint32_t r)
{
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const int small = a < 0x38800000u;
    const float w = small ? (number(a) + 0x1.0000000000000p-14f) : number(a);
    const uint32_t cut = ((bits(w) - 0x38000000u) + (r >> 0x13u)) >> 0xdu;
    const uint32_t code = small ? (cut - 0x400u) : cut;
    const uint32_t finite = (code > 0x7bffu) ? 0x7bffu : code;
    const uint32_t kept = (a < 0x7f800000u) ? finite : 0x7c00u;
    return (a > 0x7f800000u) ? 0x7e00u : (kept | ((u >> 0x10u) & 0x8000u));
}

CODEC uint32_t float16_nearest(float x, uint32_t r)
{
    (void)r;
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const uint32_t small = bits((number(a) + 0x1.0000000000000p-1f)) - 0x3f000000u;
    const uint32_t cut = (((a - 0x38000000u) + 0xfffu) + ((a >> 0xdu) & 0x1u)) >> 0xdu;
    const uint32_t code = (a < 0x38800000u) ? small : ((a < 0x477ff000u) ? cut : 0x7c00u);
    return (a > 0x7f800000u) ? 0x7e00u : (code | ((u >> 0x10u) & 0x8000u));
}

CODEC uint32_t float8_magnitude(float x)
{
    const uint32_t a = bits(x) & 0x7fffffffu;
    return (a < 0x7f800000u) ? a : 0x0u;
}

CODEC float float8_scale(float a)
{
    return a / 0x1.c000000000000p+8f;
}

CODEC float float8_inverse(float a)
{
    return (a < 0x1.0000000000000p-100f) ? (a * 0x0.0p+0f) : (0x1.c000000000000p+8f / a);
}

CODEC float float8_decode(uint32_t c, float scale)
{
    const uint32_t m = c & 0x7fu;
    const float small = number(((m << 0x14u) + 0x3c800000u)) - 0x1.0000000000000p-6f;
    const float normal = number(((m << 0x14u) + 0x3c000000u));
    const float special = number(((m << 0x14u) | 0x7f800000u));
    const float size = (m < 0x8u) ? small : ((m < 0x7fu) ? normal : special);
    return number((bits(size) | ((c & 0x80u) << 0x18u))) * scale;
}

CODEC uint32_t float8_stochastic(float x, float inverse, uint32_t floor, uint32_t r)
{
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const float y = number(a) * inverse;
    const int small = y < 0x1.0000000000000p-6f;
    const uint32_t cut = ((bits((small ? (y + 0x1.0000000000000p-6f) : y)) - 0x3c000000u) + (r >> 0xcu)) >> 0x14u;
    const uint32_t code = small ? (cut - 0x8u) : cut;
    const uint32_t kept = (code > 0x7eu) ? 0x7eu : (((code < floor) & (a > 0x0u)) ? floor : code);
    return (a < 0x7f800000u) ? (kept | ((u >> 0x18u) & 0x80u)) : 0x7fu;
}

CODEC uint32_t float8_nearest(float x, float inverse, uint32_t floor, uint32_t r)
{
    (void)r;
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const float y = number(a) * inverse;
    const uint32_t small = bits((y + 0x1.0000000000000p+14f)) - 0x46800000u;
    const uint32_t cut = (((bits(y) - 0x3c000000u) + 0x7ffffu) + ((bits(y) >> 0x14u) & 0x1u)) >> 0x14u;
    const uint32_t code = (y < 0x1.0000000000000p-6f) ? small : cut;
    const uint32_t kept = (code > 0x7eu) ? 0x7eu : (((code < floor) & (a > 0x0u)) ? floor : code);
    return (a < 0x7f800000u) ? (kept | ((u >> 0x18u) & 0x80u)) : 0x7fu;
}
