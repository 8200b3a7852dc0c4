/*-------------------------------------------------------------------------
 *
 * policy_values.h
 *	  Policies: what their columns say.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RULE_POLICY_VALUES_H
#define IDEM_RULE_POLICY_VALUES_H

#include "nodes/execnodes.h"

#include "rule/policy.h"
#include "rule/rule_table.h"

extern IdemRuleTable idem_policy_table;

extern void idem_policy_values_ship(IdemPolicy *policy, const char *name);
extern void idem_policy_values_apply(IdemPolicy *policy,
									 const IdemRuleRow *row, bool strict);
extern void idem_policy_values_put(ReturnSetInfo *rsinfo,
								   const IdemPolicy *policy);
extern void idem_policy_values_init(void);

#endif							/* IDEM_RULE_POLICY_VALUES_H */
