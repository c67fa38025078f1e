// Elementary functions of one number, for loops that a compiler turns into vectors: those of the standard library are
// called for one number at a time, and would take most of a step of the functional.
//
// They are within 2e-7 of the truth, relative to it or to 1. What is not a number stays so.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lopt {

inline float relu(float x) { return x > 0 || x != x ? x : 0.0f; }  // keeps what is not a number

// log of x > 0: e log 2 + log m with m between 1/√2 and √2, where log m = 2 artanh((m - 1) / (m + 1)).
inline float logarithm(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const int32_t e = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    bits -= static_cast<uint32_t>(e) << 23;
    float m;
    std::memcpy(&m, &bits, sizeof m);
    const float s = (m - 1) / (m + 1), z = s * s;
    const float found = e * 0.69314718f + 2 * s * (1 + z * (1 / 3.0f + z * (1 / 5.0f + z * (1 / 7.0f + z / 9))));
    return x < 0 ? NAN : x < INFINITY ? found : x;
}

// e^x for |x| up to 80, beyond which it stands still: 2^k e^r with r between -log(2) / 2 and log(2) / 2.
inline float exponential(float x) {
    const float bounded = x < -80 ? -80.0f : x > 80 ? 80.0f : x;
    const float shifted = bounded * 1.44269504f + 12582912.0f;  // 3 * 2^22: the last bits of the sum are the integer
    const float k = shifted - 12582912.0f;
    const float r = (bounded - k * 0.693359375f) + k * 2.12194440e-4f;
    const float last = 1 / 24.0f + r * (1 / 120.0f + r * (1 / 720.0f + r / 5040));
    const float series = 1 + r * (1 + r * (1 / 2.0f + r * (1 / 6.0f + r * last)));
    uint32_t power;
    std::memcpy(&power, &shifted, sizeof power);
    power = (power << 23) + 0x3f800000;
    float scale;
    std::memcpy(&scale, &power, sizeof scale);
    return series * scale;
}

inline float tangent(float x) {  // tanh
    const float t = exponential(x < 0 ? 2 * x : -2 * x);
    return x < 0 ? (t - 1) / (1 + t) : (1 - t) / (1 + t);
}

inline float lerp(float a, float b, float w) { return w < 0.5f ? a + w * (b - a) : b - (b - a) * (1 - w); }

}  // namespace lopt
