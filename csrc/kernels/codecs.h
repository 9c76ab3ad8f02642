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

CODEC uint32_t bfloat16_stochastic(int ordinary, float x, uint32_t r)
{
    const uint32_t u = bits(x);
    const uint32_t below = (!ordinary && (number((u & 0x7fffffffu)) > 0x1.fe00000000000p+127f)) ? 0x0u : (r >> 0x10u);
    return (!ordinary && (x != x)) ? 0x7fc0u : ((u + below) >> 0x10u);
}

CODEC uint32_t bfloat16_nearest(int ordinary, float x, uint32_t r)
{
    (void)r;
    const uint32_t u = bits(x);
    const uint32_t cut = ((u + 0x7fffu) + ((u >> 0x10u) & 0x1u)) >> 0x10u;
    return (!ordinary && ((u & 0x7fffffffu) > 0x7f800000u)) ? 0x7fc0u : cut;
}

CODEC float float16_decode(uint32_t c)
{
    const uint32_t m = (c << 0xdu) & 0xfffe000u;
    const float twice = number((m + 0x38800000u));
    const float small = twice - 0x1.0000000000000p-14f;
    const float size = (small < (twice * 0x1.0000000000000p-1f)) ? small : (twice * 0x1.0000000000000p-1f);
    const uint32_t a = (twice > 0x1.ffc0000000000p+16f) ? (m | 0x7f800000u) : bits(size);
    return number((a | ((c << 0x10u) & 0x80000000u)));
}

CODEC uint32_t float16_stochastic(int ordinary, float x, uint32_t r)
{
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const float small = number(a) + 0x1.0000000000000p-14f;
    const float twice = number(a) + number(a);
    const uint32_t cut = ((bits(((twice < small) ? small : twice)) - 0x38800000u) + (r >> 0x13u)) >> 0xdu;
    const uint32_t kept = (!ordinary && (a > 0x7f7fffffu)) ? 0x7c00u : ((cut > 0x7bffu) ? 0x7bffu : cut);
    return (!ordinary && (x != x)) ? 0x7e00u : (kept | ((u >> 0x10u) & 0x8000u));
}

CODEC uint32_t float16_nearest(int ordinary, float x, uint32_t r)
{
    (void)r;
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const uint32_t small = bits((number(a) + 0x1.0000000000000p-1f)) - 0x3f000000u;
    const uint32_t cut = (((a - 0x38000000u) + 0xfffu) + ((a >> 0xdu) & 0x1u)) >> 0xdu;
    const uint32_t code = (a < 0x38800000u) ? small : ((a < 0x477ff000u) ? cut : 0x7c00u);
    return (!ordinary && (a > 0x7f800000u)) ? 0x7e00u : (code | ((u >> 0x10u) & 0x8000u));
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

CODEC float float8_decode(int ordinary, uint32_t c, float scale)
{
    const uint32_t m = (c << 0x14u) & 0x7f00000u;
    const float twice = number((m + 0x3c800000u));
    const float small = twice - 0x1.0000000000000p-6f;
    const float size = (small < (twice * 0x1.0000000000000p-1f)) ? small : (twice * 0x1.0000000000000p-1f);
    const uint32_t a = (!ordinary && (twice > 0x1.c000000000000p+9f)) ? (m | 0x7f800000u) : bits(size);
    return number((a | ((c << 0x18u) & 0x80000000u))) * scale;
}

CODEC uint32_t float8_stochastic(int ordinary, float x, float inverse, uint32_t floor, uint32_t r)
{
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const float y = number(a) * inverse;
    const float small = y + 0x1.0000000000000p-6f;
    const uint32_t cut = ((bits((((y + y) < small) ? small : (y + y))) - 0x3c800000u) + (r >> 0xcu)) >> 0x14u;
    const uint32_t least = (a < floor) ? a : floor;
    const uint32_t kept = (cut < least) ? least : cut;
    return (!ordinary && (a > 0x7f7fffffu)) ? 0x7fu : (((kept > 0x7eu) ? 0x7eu : kept) | ((u >> 0x18u) & 0x80u));
}

CODEC uint32_t float8_nearest(int ordinary, float x, float inverse, uint32_t floor, uint32_t r)
{
    (void)r;
    const uint32_t u = bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const float y = number(a) * inverse;
    const uint32_t small = bits((y + 0x1.0000000000000p+14f)) - 0x46800000u;
    const uint32_t cut = (((bits(y) - 0x3c000000u) + 0x7ffffu) + ((bits(y) >> 0x14u) & 0x1u)) >> 0x14u;
    const uint32_t code = (y < 0x1.0000000000000p-6f) ? small : cut;
    const uint32_t least = (a < floor) ? a : floor;
    const uint32_t kept = (code < least) ? least : code;
    return (!ordinary && (a > 0x7f7fffffu)) ? 0x7fu : (((kept > 0x7eu) ? 0x7eu : kept) | ((u >> 0x18u) & 0x80u));
}
