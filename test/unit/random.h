/*-------------------------------------------------------------------------
 *
 * random.h
 *	  Random numbers for the harnesses, the same in each run with a seed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RANDOM_H
#define IDEM_RANDOM_H

static uint64 random_state;

static void
seed_random(uint64 seed)
{
	random_state = seed;
}

/* splitmix64 */
static uint64
next_random(void)
{
	uint64		z = (random_state += UINT64CONST(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64CONST(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64CONST(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

#endif							/* IDEM_RANDOM_H */
