/*-------------------------------------------------------------------------
 *
 * keep.h
 *	  Files that keep shared memory over a clean restart.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_KEEP_H
#define IDEM_BASE_KEEP_H

extern void idem_keep_write(const char *path, uint32 magic, const void *data,
							Size size);
extern bool idem_keep_read(const char *path, uint32 magic, void *data,
						   Size room, Size *size);

#endif							/* IDEM_BASE_KEEP_H */
