"""Chat templates of the families that write tool calls otherwise than those in `template_shapes`, in our own words."""

from typing import Final

PYTHONIC: Final = """
{%- if tools %}
    {{- '<|system|>Answer with calls, as [func_name1(name1=value1, name2=value2), func_name2()]:\\n' }}
    {%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}
{%- endif %}
{%- macro literal(value) %}
    {%- if value is string %}{{- value | tojson }}
    {%- elif value is mapping %}
        {{- '{' }}
        {%- for key, inner in value.items() %}
            {{- key | tojson + ': ' + literal(inner) + (', ' if not loop.last else '') }}
        {%- endfor %}
        {{- '}' }}
    {%- elif value is iterable %}
        {{- '[' }}
        {%- for inner in value %}{{- literal(inner) + (', ' if not loop.last else '') }}{%- endfor %}
        {{- ']' }}
    {%- else %}{{- value }}{%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {{- '<|' + message.role + '|>' }}
    {%- if message.tool_calls %}
        {{- '<|python_start|>' + (message.content or '') + '[' }}
        {%- for call in message.tool_calls %}
            {{- call.function.name + '(' }}
            {%- for key, value in call.function.arguments.items() %}
                {{- key + '=' + literal(value) + (', ' if not loop.last else '') }}
            {%- endfor %}
            {{- ')' + (', ' if not loop.last else '') }}
        {%- endfor %}
        {{- ']<|python_end|>' }}
    {%- else %}{{- message.content }}{%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""

QWEN3_CODER: Final = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}
        {{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
        {%- for key, value in call.function.arguments.items() %}
            {{- '<parameter=' + key + '>\\n' }}
            {{- value | tojson if value is mapping or (value is iterable and value is not string) else value | string }}
            {{- '\\n</parameter>\\n' }}
        {%- endfor %}
        {{- '</function>\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

NEWER_MISTRAL: Final = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {%- if message.reasoning_content %}{{- '[THINK]' + message.reasoning_content + '[/THINK]' }}{%- endif %}
        {{- message.content or '' }}
        {%- for call in message.tool_calls or [] %}
            {{- '[TOOL_CALLS]' + call.function.name + ('[CALL_ID]' + call.id if call.id else '') + '[ARGS]' }}
            {{- call.function.arguments | tojson }}
        {%- endfor %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
"""
