import sys, torch, math, time, statistics
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from octavo_server.worker.noise import exponential_noise, stream_of, random_bits
from octavo_server.worker.sampler import choose, processed_logits, Sampler
from octavo_server.worker.logits_processors import SamplingRow
from octavo_server.worker.logprobs import launch_logprobs
from octavo_server.ipc import SamplingParams
from octavo_kernels import sampling, truncation
from octavo_kernels import sampling_table as T
from octavo_kernels.logprobs import logprobs
D=torch.device('cuda'); V=151936
def table_for(params, positions):
    t=np.zeros((len(params),T.COLUMNS),dtype=np.int64); f=t.view(np.float32)
    for i,(p,pos) in enumerate(zip(params,positions)):
        few=0<p.top_k<=64
        cut=not few and (p.top_k>0 or p.top_p<1 or p.min_p>0)
        t[i,:4]=stream_of(p.seed,p.choice),pos,p.top_k,(1 if few else 0)|(2 if cut else 0)
        if p.temperature<1e-5: t[i,3]=0
        f[i,24]=p.temperature; f[i,25]=p.top_p; f[i,26]=math.log(p.min_p) if p.min_p>0 else -math.inf; f[i,27]=1
    return torch.from_numpy(t).to(D)
class Run:
    def __init__(s,n,params,logits,seed=0):
        s.table=table_for(params,[r*5 for r in range(n)]); s.slots=torch.arange(n,device=D); s.logits=logits
        s.work=sampling.SamplingWorkspace.allocate(n,V,D); s.last=torch.zeros(n,dtype=torch.int64,device=D); s.tokens=torch.zeros(n,dtype=torch.int32,device=D)
    def draw(s,few=False,cut=False,dw=8,fw=8,cb=4096,cw=16):
        sampling.draw_blocks(s.logits,s.slots,s.table,s.work,dw)
        if few: truncation.draw_few(s.logits,s.slots,s.table,s.work,fw)
        if cut: truncation.draw_cut(s.logits,s.slots,s.table,s.work,cb,cw)
        sampling.finish_draw(s.slots,s.table,s.work,s.last,s.tokens)
def graph_us(calls,replays=7):
    torch.cuda.synchronize(); side=torch.cuda.Stream()
    with torch.cuda.stream(side):
        for c in calls[:2]: c()
    torch.cuda.synchronize(); g=torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for c in calls: c()
    ts=[]
    for _ in range(replays+2):
        a,b=torch.cuda.Event(enable_timing=True),torch.cuda.Event(enable_timing=True); a.record(); g.replay(); b.record(); torch.cuda.synchronize(); ts.append(a.elapsed_time(b))
    return statistics.median(ts[2:])*1000/len(calls)
gen=torch.Generator(device=D).manual_seed(0)
# correctness against the torch definition on this device and on the CPU
params=[SamplingParams(temperature=(0.0,0.7,1.0,1.3)[r%4],top_p=(1.0,0.8,0.3)[r%3],top_k=(0,0,20,100,1,5000)[r%6],min_p=(0.0,0.02)[r//2%2],seed=r*77) for r in range(24)]
for name,spread,tie in (("normal*3",3.,0),("normal*0.2",.2,0),("ties",3.,1)):
    x=torch.randn(24,V,generator=gen,device=D)*spread
    if tie: x=(x*4).round()/4
    r=Run(24,params,x); r.draw(True,True); got=r.tokens.tolist()
    ids,vals,ranks=logprobs(x,r.tokens,r.slots,20); w=launch_logprobs(x,r.tokens.long(),[20]*24)
    for dev in ("cpu","cuda"):
        want=[]
        for i,p in enumerate(params):
            y=x[i:i+1].to(dev); h=y.amax(-1,keepdim=True)
            want.append(int(y.argmax()) if p.temperature==0 else int(choose(processed_logits(y,h,[p]),exponential_noise([p.seed],[i*5],V,torch.device(dev)))))
        print(name,dev,"differing rows",[(i,g,w_) for i,(g,w_) in enumerate(zip(got,want)) if g!=w_])
    print("logprobs ids",torch.equal(ids,w.ids),"values",(vals-w.values).abs().max().item(),"ranks",torch.equal(ranks,w.ranks))
# statistics: 200k draws of 40 tokens inside the big vocabulary
def kinds(n):
    S=lambda **k:[SamplingParams(seed=i*31+7,**k) for i in range(n)]
    return {"greedy":(S(temperature=0.0),{}),"temperature":(S(temperature=.6),{}),"k20p.95":(S(temperature=.6,top_k=20,top_p=.95),dict(few=True)),"k64":(S(temperature=.6,top_k=64),dict(few=True)),"p.95":(S(temperature=.6,top_p=.95),dict(cut=True)),"k1000p.95":(S(temperature=.6,top_k=1000,top_p=.95),dict(cut=True)),"min_p":(S(temperature=.6,min_p=.05),dict(cut=True))}
variants={"greedy":[dict(dw=w) for w in (4,8,16)],"temperature":[dict(dw=w) for w in (4,8,16)],"k20p.95":[dict(fw=w) for w in (4,8,16)],"k64":[dict(fw=w) for w in (4,8,16)],
 "p.95":[dict(cb=b,cw=w) for b,w in ((1024,8),(2048,8),(2048,16),(4096,16),(4096,32),(8192,32))]}
small=torch.randn(1,V,device=D)
jobs=[(k,v) for k,vs in variants.items() for v in vs]
with ThreadPoolExecutor(12) as pool:
    def warm(j):
        k,v=j; P,o=kinds(1)[k]; Run(1,P,small).draw(**o,**v)
    list(pool.map(warm,jobs))
torch.cuda.synchronize()
for spread in (3.0,.2):
  for n in (1,8,64,256):
    xs=[torch.randn(n,V,generator=gen,device=D)*spread for _ in range(1 if n==256 else 4)]
    for k,(P,o) in kinds(n).items():
        if n in (8,64) and spread<1: continue
        for v in (variants.get(k,[{}]) if n in (1,256) else [{}]):
            runs=[Run(n,P,x) for x in xs]
            print(f"{spread} {n:4d} {k:12s} {v} {graph_us([lambda r=r: r.draw(**o,**v) for r in runs]):9.1f} us",flush=True)
    r=runs[0]
    for c in (0,20): print(f"{spread} {n:4d} logprobs {c} {graph_us([lambda r=r: logprobs(r.logits,r.tokens,r.slots,c) for r in runs]):9.1f} us")
    r=Run(n,kinds(n)["temperature"][0],xs[0]); torch.cuda.synchronize(); r.draw(); torch.cuda.synchronize(); t=[]
    for _ in range(50):
        a=time.perf_counter(); r.draw(); t.append(time.perf_counter()-a)
    print(f"     host of the two launches {statistics.median(t)*1e6:.1f} us")
    torch.cuda.synchronize()
x=torch.randn(256,V,device=D); rows=[SamplingRow(SamplingParams(temperature=.6,seed=i),50,10) for i in range(256)]; s=Sampler()
for name,rs in (("temperature",rows),("k20p.95",[SamplingRow(SamplingParams(temperature=.6,seed=i,top_k=20,top_p=.95),50,10) for i in range(256)])):
    for _ in range(3):
        torch.cuda.synchronize(); a=time.perf_counter(); s.launch(x,rs); h=time.perf_counter()-a; torch.cuda.synchronize(); print("torch sampler before",name,f"host {h*1e3:.2f} ms, all {(time.perf_counter()-a)*1e3:.2f} ms")
