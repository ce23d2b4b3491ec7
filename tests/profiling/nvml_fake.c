/* A libnvidia-ml with one GPU, for tests: what it says is set from outside. -DOLD leaves functions out. */
#include <string.h>

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } Memory;

static int gpus = 1, unsupported = 0, opened = 0;
static u64 energy = 0, used = 0, reasons = 0;
static unsigned temperature = 40;

void fake_gpus(int value) { gpus = value; }
void fake_unsupported(int value) { unsupported = value; }
void fake_energy(u64 millijoules) { energy = millijoules; }
void fake_memory(u64 bytes) { used = bytes; }
void fake_heat(unsigned celsius, u64 bits) { temperature = celsius; reasons = bits; }
int fake_opened(void) { return opened; }

int nvmlInit_v2(void) { opened++; return 0; }
int nvmlShutdown(void) { opened--; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = gpus; return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    if ((int)index >= gpus) return 6;
    *device = (void *)(unsigned long)(index + 1);
    return 0;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length)
{
    strncpy(name, device == (void *)1 ? "Fake GPU" : "Second GPU", length);
    return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, u64 *millijoules)
{
    *millijoules = energy;
    return unsupported ? 3 : 0;
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory)
{
    memory->total = 8ull << 30;
    memory->used = used;
    memory->free = memory->total - used;
    return unsupported ? 3 : 0;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius)
{
    *celsius = temperature;
    return unsupported || sensor ? 3 : 0;
}

#ifndef OLD
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, u64 *bits) { *bits = reasons; return unsupported ? 3 : 0; }
#endif

int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) { *mhz = clock == 1 ? 1410 : 0; return 0; }
int nvmlDeviceGetMaxClockInfo(void *device, int clock, unsigned *mhz) { *mhz = clock == 1 ? 1980 : 0; return 0; }
