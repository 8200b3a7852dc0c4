/*-------------------------------------------------------------------------
 *
 * context.h
 *	  What idem_context() returns.
 *
 * The mark, then for each secret, the newest first, its key id in four bytes,
 * big-endian, and an HMAC.  The key ids descend, which tells it from other
 * bytes as well as the mark, which no text has.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_BASE_CONTEXT_H
#define IDEM_BASE_CONTEXT_H

#define IDEM_CONTEXT_MARK "\0ic\1"
#define IDEM_CONTEXT_MARK_BYTES 4
#define IDEM_CONTEXT_ID_BYTES 4
#define IDEM_CONTEXT_ENTRY_BYTES 36

#endif							/* IDEM_BASE_CONTEXT_H */
