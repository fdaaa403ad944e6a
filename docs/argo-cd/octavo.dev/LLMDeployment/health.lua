-- Health of an LLMDeployment for Argo CD. Its conditions follow kstatus: Ready says whether what is wanted is there.
local health = {status = "Progressing", message = "Waiting for the operator"}
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if status.observedGeneration == nil or status.observedGeneration < obj.metadata.generation then
  health.message = "The operator has not seen the newest spec yet"
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local ready, available, degraded = conditions.Ready, conditions.Available, conditions.Degraded

-- Something is wrong that waiting does not mend: a spec that is refused, a model that does not load, a name that is taken.
if degraded ~= nil and degraded.status == "True" then
  health.status = "Degraded"
  health.message = degraded.reason .. ": " .. (degraded.message or "")
  return health
end
if ready ~= nil then
  health.message = ready.message
  if ready.status == "True" then
    health.status = "Healthy"
    -- spec.suspend: nothing runs, by wish, until somebody changes it.
    if available ~= nil and available.reason == "Suspended" then
      health.status = "Suspended"
    end
  end
end
return health
